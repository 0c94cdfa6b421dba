"""What a selection did, as numbers, pictures, Markdown and a page: `numbers` computes, the others only show."""
