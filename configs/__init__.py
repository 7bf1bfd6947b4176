"""Published configurations, and the schema that every configuration is checked against."""
