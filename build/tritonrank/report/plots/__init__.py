"""The plots of all pages, of builds and of load tests: SVG that the page's style sheet colours."""
