"""Is this machine fit to train, and what would mend it?"""
