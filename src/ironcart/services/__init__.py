"""The five services; they meet only through events."""
