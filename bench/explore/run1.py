from lib import *
torch.manual_seed(0)
print('exact',math.exp(nll(ev)),math.exp(nll(c4)),time.time()-t00,flush=True)
c=capture(cal); print('capture',time.time()-t00,flush=True); cv=capture(val)
X=Frame(); K,V,wK,wV,MR=c['K'],c['V'],c['wK'],c['wV'],c['MR']
one=torch.ones_like(wK)
fK={S:frame(K,wK,S,MR) for S in (8,)}; fK[16]=reframe(fK[8],16); fK[32]=reframe(fK[8],32); fK[4]=reframe(fK[8],4); fK[2]=reframe(fK[8],2); fK[1]=reframe(fK[8],1); fK[64]=fK[32]
fV=frame(V,wV,8,pca=False,mean=False)
fVp={S:frame(V,wV,S,pca=True) for S in (8,4,2)}
bk=lambda d,k,**kw:train(K,wK,fK[D//d],d,k,**kw); bv=lambda d,k,**kw:train(V,wV,fV,d,k,**kw)
k1,v1=bk(8,256),bv(8,256); print('trained',time.time()-t00,flush=True)
P0=Pol(0,0.); P1=Pol(32,.01)
go('1b bare',k1,v1,P0); go('1b w32 a1%',k1,v1,P1)
k4,v4=bk(2,256),bv(2,256); ks4,vs4=bk(1,16),bv(1,16)
print('4bit relerr K',relerr(k4,cv['K'],cv['wK']),relerr(ks4,cv['K'],cv['wK']),'V',relerr(v4,cv['V'],cv['wV']),relerr(vs4,cv['V'],cv['wV']),flush=True)
go('1b, fine d2K256: w128 a4%',k1,v1,Pol(128,.04,k4,v4)); go('1b, fine d1K16: w128 a4%',k1,v1,Pol(128,.04,ks4,vs4)); go('1b, fine d2K256: w32 a4%',k1,v1,Pol(32,.04,k4,v4)); go('1b, fine d2K256: w128 a1%',k1,v1,Pol(128,.01,k4,v4)); go('1b, fine d2K256: w32 a1%',k1,v1,Pol(32,.01,k4,v4))
k2,v2=bk(4,256),bv(4,256)
go('1b, fine 4b w128 a2%, mid 2b 4%',k1,v1,Pol(128,.02,k4,v4,.04,k2,v2)); go('1b, fine 2b w256 a8%',k1,v1,Pol(256,.08,k2,v2))
k75,v75=bk(16,4096),bv(16,4096); print('trained .75',time.time()-t00,flush=True)
go('.75b w32 a1%',k75,v75,P1); go('.75b, fine 4b w128 a4%',k75,v75,Pol(128,.04,k4,v4)); go('.75b, fine 4b w128 a10%',k75,v75,Pol(128,.10,k4,v4))
k375,v375=bk(32,4096),bv(32,4096); print('trained .375',time.time()-t00,flush=True)
print('relerr .375 K',relerr(k375,K,wK),relerr(k375,cv['K'],cv['wK']),'V',relerr(v375,V,wV),relerr(v375,cv['V'],cv['wV']),flush=True)
go('.375b w32 a1%',k375,v375,P1); go('.375b, fine 4b w128 a4%',k375,v375,Pol(128,.04,k4,v4)); go('.375b, fine 2b w256 a8%',k375,v375,Pol(256,.08,k2,v2)); go('K.75 V.375, fine 4b w128 a4%',k75,v375,Pol(128,.04,k4,v4))
# additive bigger dims
ka=bk(16,256,stages=2); va=bv(16,256,stages=2); print('add16 relerr K',relerr(k1,cv['K'],cv['wK']),relerr(ka,cv['K'],cv['wK']),'V',relerr(v1,cv['V'],cv['wV']),relerr(va,cv['V'],cv['wV']),time.time()-t00,flush=True)
go('1b add16:256+256 w32 a1%',ka,va,P1)
go('1b V pca8',k1,train(V,wV,fVp[8],8,256),P1)
# tuning
kt,vt=local(k1,v1,P1,2); go('1b local tuned w32 a1%',kt,vt,P1)
ke,ve=e2e(k1,v1,P1,1,maxs=100); go('1b e2e tuned 1ep w32 a1%',ke,ve,P1)
pt=Pol(128,.04,k4,v4); go('1b e2e tuned, fine 4b w128 a4%',ke,ve,pt)
