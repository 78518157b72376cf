"""`python -m tersely.cli`: how the supervisor starts services, with or without the script on the path."""

from tersely.cli.main import main

main()
