"""`python -m warp_nb`: see `cli`."""

from warp_nb.cli import main

raise SystemExit(main())
