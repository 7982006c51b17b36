"""The tasks, one module or package for each: data, enumerator, check, text and picture."""
