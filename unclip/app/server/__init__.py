"""The server: OpenAI's Images API over the models that are loaded, a page. The one importer of FastAPI."""
