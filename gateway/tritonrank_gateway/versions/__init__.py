"""Several built artifacts side by side behind one gateway: what answers, what is tried out, and how they compare."""
