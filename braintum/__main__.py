"""`python -m braintum` is `braintum`."""

from braintum.cli import main

raise SystemExit(main())
