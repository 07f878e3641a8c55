"""What every node of the stack shares: one lifecycle, typed parameters, images, quality of service, diagnostics."""
