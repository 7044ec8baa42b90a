"""Search for better training settings, and ask whether more judgments would help; both look at dev alone."""
