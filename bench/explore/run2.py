from lib import *
import traceback
torch.manual_seed(0)
c=capture(cal); cv=capture(val); print('capture',time.time()-t00,flush=True)
K,V,wK,wV,MR=c['K'],c['V'],c['wK'],c['wV'],c['MR']
f8=frame(K,wK,8,MR); fK={S:reframe(f8,S) for S in (1,2,4,16,32)}; fK[8]=f8; fK[64]=fK[32]
fV=frame(V,wV,8,pca=False,mean=False)
bk=lambda d,k,**kw:train(K,wK,fK[D//d],d,k,**kw); bv=lambda d,k,**kw:train(V,wV,fV,d,k,**kw)
re=lambda n,a,b:print(f'   relerr {n:20s} K {relerr(a,cv["K"],cv["wK"]):.4f} V {relerr(b,cv["V"],cv["wV"]):.4f}  t={time.time()-t00:.0f}',flush=True)
def tr(n,d,k,**kw): a,b=bk(d,k,**kw),bv(d,k,**kw); re(n,a,b); return a,b
P1=Pol(32,.01)
f4=tr('fine d2 16+16',2,16,stages=2,rounds=6); f4b=tr('fine d4 256+256',4,256,stages=2,rounds=4) if 0 else None
PF=Pol(128,.04,*f4); 
b8=tr('8x256',8,256)
go('8x256 PF(d2 16+16)',*b8,PF)
x=tr('8x16+16',8,16,stages=2,rounds=10); go('8x16+16 P1',*x,P1)
x=tr('16x16^4',16,16,stages=4,rounds=10); go('16x16^4 P1',*x,P1)
q=tr('64x256^3',64,256,stages=3,rounds=6); go('.375 64x256^3 P1',*q,P1); go('.375 64x256^3 PF',*q,PF)
q1=e2e(*q,PF,1); go('.375 64x256^3 PF e2e1 PF',*q1,PF)
h=tr('.5 32x256^2',32,256,stages=2,rounds=5); go('.5 32x256^2 PF',*h,PF)
a=tr('16x256^2',16,256,stages=2,rounds=5); go('16x256^2 PF',*a,PF)
a1=e2e(*a,PF,2); go('16x256^2 e2e2 PF',*a1,PF); go('16x256^2 e2e2(PF) on P1',*a1,P1); go('  same bare',*a1,Pol(0,0.))
t2=tr('2b 8x256^2',8,256,stages=2,rounds=3); go('2b 8x256^2 PF',*t2,PF); go('2b 8x256^2 P1',*t2,P1)
