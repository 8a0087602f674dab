"use strict";
// Starts every part once the page is there.

document.documentElement.classList.remove("no-script");
startFrontier();
startPictures();
startSchedule();
startSearch();
select(firstRun());
addEventListener("hashchange", () => select(firstRun()));
addEventListener("beforeprint", () => {
  for (const place of document.querySelectorAll("details")) place.open = true;
  for (const again of drawings) again();
});
addEventListener("afterprint", () => drawings.forEach((again) => again()));
