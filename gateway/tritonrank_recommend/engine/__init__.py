"""The way of a recommendation: profile -> retrieval -> rank -> blend -> rules -> page."""
