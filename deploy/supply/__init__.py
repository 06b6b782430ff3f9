"""What goes into a release: locks with hashes for the images, and bills of materials made of them."""
