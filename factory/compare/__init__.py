"""Several runs side by side: what each took, what came out, what was asked differently, and which is surely better."""
