// Fill the sections that need a script.

for (const [id, build] of [
  ["text", textSection],
  ["attention", attentionSection],
  ["experts", expertsSection],
  ["lens", lensSection],
]) {
  const section = document.getElementById(id);
  if (section) build(section);
}
document.documentElement.dataset.ready = "yes";
