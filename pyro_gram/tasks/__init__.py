"""The tasks. The module or package of a task holds its data, solutions, check of answers, texts and pictures."""
