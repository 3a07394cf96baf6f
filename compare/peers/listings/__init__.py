"""The article's listings, one a framework, each in its own idiom.

The report shows these files side by side and the adapters run them, so a file holds
nothing but its listing. Where today's version forces a difference from the article's
text, or a mode does, a comment says which. The article's text: docs of the report.
"""
