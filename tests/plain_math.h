// Formulas of csrc/math on plain numbers, as a CUDA kernel runs them: the program reads requests from standard input
// and writes results, all in hexadecimal floating point, so that nothing is rounded on the way (plain_math.py).
#pragma once

#include <cstdio>
#include <vector>

template <typename T>
void print(T value, const char* end = " ") {
  std::printf("%a%s", static_cast<double>(value), end);
}

// Each program defines it: one line of results.
template <typename T>
void answer(char what, const double* numbers);

// A request: 's' or 'd' for float or double, what to compute, how many numbers follow, the numbers.
int main() {
  char type, what;
  int count;
  while (std::scanf(" %c %c %d", &type, &what, &count) == 3) {
    std::vector<double> numbers(count);
    for (double& number : numbers) {
      if (std::scanf("%lf", &number) != 1) return 1;
    }
    type == 's' ? answer<float>(what, numbers.data()) : answer<double>(what, numbers.data());
  }
}
