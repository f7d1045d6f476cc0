"""Strategies side by side, on the same users, with how sure each difference is."""
