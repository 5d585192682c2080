"""How the pages that are served look: one theme for all of them."""

import gradio as gr


def theme() -> gr.Theme:
    """Fonts of the system, so that nothing is fetched from elsewhere; a contrast of 4.5 and more."""
    made = gr.themes.Soft(
        primary_hue="teal", neutral_hue="slate", radius_size="lg",
        font=["system-ui", "-apple-system", "Segoe UI", "sans-serif"], font_mono=["ui-monospace", "monospace"],
    )  # fmt: skip
    return made.set(
        button_primary_background_fill="*primary_700", button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700", button_primary_background_fill_hover_dark="*primary_800",
        button_secondary_background_fill_hover_dark="*neutral_500",
        block_label_text_color="*primary_800", block_title_text_color="*primary_800",
        block_label_background_fill_dark="*primary_800", block_title_background_fill_dark="*primary_800",
        body_text_color_subdued="*neutral_600", body_text_color_subdued_dark="*neutral_300",
    )  # fmt: skip
