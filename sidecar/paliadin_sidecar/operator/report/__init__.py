"""The report: figures of `audit.statistics` as one HTML file."""
