"use strict";
// Starts every part once the page is there.

document.documentElement.classList.remove("no-script");
startFrontier();
startPictures();
startSchedule();
startSearch();
select(firstRun());
addEventListener("hashchange", () => select(firstRun()));
for (const [event, printing] of [["beforeprint", true], ["afterprint", false]]) {
  addEventListener(event, () => {
    document.documentElement.classList.toggle("printing", printing);
    if (printing && byId("numbers")) byId("numbers").open = true;
    for (const again of drawings) again();
  });
}
