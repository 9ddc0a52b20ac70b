"""Data: files to rows, rows to records, records to tokens, tokens to batches."""
