"""Speed and memory against peers and the physical floor: `make bench`, results in README.md of this folder."""
