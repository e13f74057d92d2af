"""Programs that train each part, and that make their data."""
