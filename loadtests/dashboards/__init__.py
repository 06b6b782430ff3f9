"""The dashboards of deploy/grafana without Grafana: ask what they ask, and draw what comes back."""
