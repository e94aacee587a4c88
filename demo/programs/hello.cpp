#include <algorithm>
#include <iostream>
#include <string>
#include <vector>

int main()
{
    std::vector<std::string> words{"from C++", "hello"};
    std::ranges::sort(words, std::greater<>{});
    for (const auto &word : words) std::cout << word << (word == words.back() ? "\n" : " ");
}
