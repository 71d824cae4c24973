"""Child processes that cannot outlive us, and where they keep their things."""
