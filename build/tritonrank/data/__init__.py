"""From tables, MovieLens or a generated storefront to examples that are learnt and judged."""
