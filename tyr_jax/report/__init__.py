"""Results for people to read: tables, a page with figures (`report.html`), a model card (`README.md`)."""
