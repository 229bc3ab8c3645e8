"""A plugin of pytest (``-p a_gpu``): makes what is collected believe that there is a GPU. Nothing can run there."""

import torch

torch.cuda.is_available = lambda: True
