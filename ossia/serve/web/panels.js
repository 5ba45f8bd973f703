// The panels at the sides: beside the conversation where there is room, over it where there is not.

export class Panel {
  // Beside the conversation it is `wide`, a media query, that decides; opener is its button.
  constructor(dialog, opener, wide, openAtFirst) {
    this.dialog = dialog;
    this.opener = opener;
    this.wide = window.matchMedia(wide);
    opener.addEventListener("click", () => this.toggle());
    dialog.addEventListener("close", () => this.told());
    dialog.addEventListener("click", (event) => {
      if (event.target === dialog && !this.beside) this.close(); // outside of what is in it
    });
    dialog.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.beside && !openAtFirst) this.close();
    });
    this.wide.addEventListener("change", () => {
      this.dialog.close();
      if (this.beside && openAtFirst) this.dialog.open = true;
      this.told();
    });
    if (this.beside && openAtFirst) this.dialog.open = true; // unlike show(), it takes no focus
    this.told();
  }

  get beside() {
    return this.wide.matches;
  }

  open() {
    if (this.beside) this.dialog.show();
    else this.dialog.showModal();
    this.told();
  }

  close() {
    this.dialog.close();
    this.opener.focus();
  }

  toggle() {
    if (this.dialog.open) this.close();
    else this.open();
  }

  told() {
    this.opener.setAttribute("aria-expanded", String(this.dialog.open));
  }
}
