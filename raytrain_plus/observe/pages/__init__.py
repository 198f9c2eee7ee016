"""What all pages have in common: the frame, the style sheet, and what shows values."""
