"""`python -m sovit` is the `sovit` command."""

from sovit.cli import main

raise SystemExit(main())
