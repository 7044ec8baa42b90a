"""Search engines that hold an index, one package each."""
