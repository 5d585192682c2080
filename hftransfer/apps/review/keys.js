// A key presses the button that bears it. Not while something is written or chosen from a list, and not with a modifier.
() => {
  const buttons = { Enter: "choice-1", k: "keep", d: "drop", g: "group", u: "undo", ArrowLeft: "back", ArrowRight: "forward" };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    if (event.target.closest("input, textarea, [role=listbox], [contenteditable]")) return;
    if (event.key === "Enter" && event.target.closest("button, a, summary")) return;
    const id = /^[1-9]$/.test(event.key) ? `choice-${event.key}` : buttons[event.key];
    const button = id && document.getElementById(id);
    if (!button || button.disabled || !button.offsetParent) return;  // on a page that is not shown
    event.preventDefault();
    button.click();
  });
  // A button pressed with the mouse keeps the focus: Enter would press it again on the next question.
  document.addEventListener("click", (event) => {
    if (event.detail > 0) event.target.closest("button")?.blur();
  });
}
