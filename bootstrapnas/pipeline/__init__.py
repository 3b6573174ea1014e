"""What the pipelines' command lines share: flags, stages common to several systems, recipes."""
