"""What devices measure: every signal, one module each; `base` says what a signal is."""
