"""What finds candidates: the two-tower retriever, the catalogue with its indexes, the blend, and how all are judged."""
