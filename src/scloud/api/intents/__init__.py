"""What each write of the API puts into the database: spec, operation and work item, in one transaction."""
