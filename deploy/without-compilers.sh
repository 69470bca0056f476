#!/bin/sh
# Run while the image is built, when the packages are installed: BentoML brings a compiler and git, the service uses none.
set -eu
apt-get purge -q -y --auto-remove build-essential git gnupg2
rm -rf /var/lib/apt/lists/*
