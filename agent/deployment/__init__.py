"""The life of one operation: a pure table decides, one loop acts."""
