// A file that is chosen is put into the text field that its own names; it goes nowhere by itself.
"use strict";
for (const chosen of document.querySelectorAll("input[type=file][data-into]")) {
  chosen.addEventListener("change", async () => {
    const [file] = chosen.files;
    if (file && file.size < 100000) document.getElementById(chosen.dataset.into).value = await file.text();
  });
}
