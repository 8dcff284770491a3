"""What all reports share: tables in Markdown, intervals of differences, the style of plots."""
