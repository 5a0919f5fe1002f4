"""`python -m warp_nb.report`: see `command`."""

from warp_nb.report.command import main

raise SystemExit(main())
