"""The commands of ``aiockpt``, a module each: options in, a summary or a transfer made, tables or JSON out."""
