"""One file a problem, each the whole truth about it: data, enumerator, check, text and picture."""
