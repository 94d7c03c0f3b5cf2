"""What was found, for people: tables, a page with figures (`report.html`), a model card (`README.md`)."""
