"""Images of any size, a gigapixel and more: read by regions, scored by tiles, in constant memory."""
